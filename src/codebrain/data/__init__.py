"""Raw data sets to training batches, and studies simulated from MR physics."""
