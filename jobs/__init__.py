"""Job graphs: one short file each, named by a `_target_` in conf/job."""
