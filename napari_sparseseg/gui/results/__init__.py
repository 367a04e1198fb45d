"""The dock with objects and areas of a predicted slide."""
