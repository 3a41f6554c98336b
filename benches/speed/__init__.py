"""The speed report: Longshore and its peers on the same work, beside the plain limits of it. Start at `cli.main`."""
