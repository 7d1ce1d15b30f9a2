"""The papers' ablations: experiments as data, their runs, and what the results say of the claims."""
