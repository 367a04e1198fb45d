"""Faults that really happen: processes killed, disks full, memory gone."""
