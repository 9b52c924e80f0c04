"""Default schedules as rules: what a block computes (`tensor/classify.py`) and a target's facts decide, nothing else."""
