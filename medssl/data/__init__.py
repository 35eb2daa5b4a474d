"""Volumes on disk: reading, checking, preparing, and cutting training patches."""
