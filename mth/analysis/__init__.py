"""From finished runs to tables, figures and the report's page. Reads run folders, frames and MLflow; knows nothing of training.

The data flow: `sources` reads a `Collection` of runs, `needs` groups it by experiment, `figures` makes items of it, `page` puts them together.
"""
