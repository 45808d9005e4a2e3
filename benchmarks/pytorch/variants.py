"""The ways to run the same iteration: eager, compiled, and as captured CUDA graphs."""


def trainer_class(variant):
    """The trainer of a variant; imported on demand, for what is not used costs a start."""
    if variant == "eager":
        from loop import Trainer

        return Trainer
    if variant == "compile":
        from compiled import CompiledTrainer

        return CompiledTrainer
    if variant == "cudagraph":
        from graphs import GraphTrainer

        return GraphTrainer
    raise SystemExit(f"no variant {variant}; choose eager, compile or cudagraph")
