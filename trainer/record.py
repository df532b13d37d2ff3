def fill_record(run_dir, experiment_dir="experiment"):
    return None
