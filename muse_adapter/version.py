"""The version of the package; setup.cfg reads it from here without importing anything."""

VERSION = "0.1.0"
