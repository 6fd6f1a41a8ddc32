"""Reads what annotation tools and other models write, and makes lines of a user's own data of it."""
