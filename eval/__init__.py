"""Programs that measure: speed (`eval.bench`) and quality (`eval.harness`)."""
