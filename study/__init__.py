"""The study behind the claims about the method: experiments, trainings in three seeds, and the page of results."""
