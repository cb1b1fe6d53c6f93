"""What the stages of a plan are called in front of a user."""

STAGE_NAMES = {
    "encode": "vision encoder",
    "dense": "projections and MLP",
    "query": "question over own keys",
    "own": "inside segments",
    "shared": "sinks and context",
}
