"""The composition root: a configuration becomes running services. It alone imports every package."""
