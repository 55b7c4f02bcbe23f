"""Which datasets are trained and evaluated on, at which rates, in which suites."""

from mixtures import catalog as catalog
