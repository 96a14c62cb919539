"""Pages that come with the package, as blueprints."""
