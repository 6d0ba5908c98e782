"""The commands' options: one spelling and one meaning each, over all commands.

A parser here imports no PyTorch, nor anything else that takes long, so that help, wrong options and shell completion
answer at once. What a command does lies in its room's commands.py, which is imported when it runs.
"""
