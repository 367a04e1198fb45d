"""What several test modules use: files, scenes, a mouse, servers, limits."""
