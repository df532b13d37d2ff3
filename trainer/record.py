def fill_record(run_dir, experiment_dir=None):
    return None
