"""Plans that travel from the dataset of a pretraining to another one."""
