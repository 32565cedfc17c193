"""Makes models/nano: scenes, tasks in Qwen-VL's own formats, training and evaluation. All of it follows from seeds."""
