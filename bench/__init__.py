"""What is measured: loaders, kernels, the training step, start, conversion, streaming; beside what the machine allows.

`fastcifar bench` is the way in. Each of `kernels`, `loaders`, `step`, `start`, `convert` and `stream` has
`measure(job)`: contestants in processes of their own (`workers`) take turns (`measure`), and their figures make a
`results.Result`, which `table`, `plot` and `readme` show and `gates` judge.
"""
