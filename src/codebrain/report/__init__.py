"""The pages and pictures that people look at; made from arrays and records, never from a model."""
