"""Pages and plots, made from saved files only."""
