"""Loads the plugin that runs what is under specs/."""

pytest_plugins = ("core.plugin",)
