"""Generates with vLLM, in this process or behind a server. Only this folder imports vllm."""
