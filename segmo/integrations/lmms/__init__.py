"""SegMo as a model of lmms-eval: ``lmms_eval --model segmo --model_args pretrained=...,keep=0.25 --tasks ...``."""
