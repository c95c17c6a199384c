"""Files to arrays and back: checked, recorded, undone exactly."""
