"""Projects that use muse-adapter."""
