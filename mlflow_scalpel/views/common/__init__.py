"""The layer under all views: the prepared table, panels, axes, traces and heat maps."""
