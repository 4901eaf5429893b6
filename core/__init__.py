"""The machinery: a spec file goes in, a verdict comes out.

spec → mutate → gates → plan → launch → judge → store → verdict → report

* errors    every error that a user can cause, as a tree
* settings  what a project sets once, in its pyproject.toml
* syntax    Python expressions, evaluated from the syntax tree and never executed
* spec      what a researcher writes: Experiment, Expect, Sweep, codemod
* mutate    source x codemods -> Mutant (source, diff, changed symbols, digest)
* gates     Mutant -> a configuration that can run, cheapest check first
* device    what a trial runs on: the GPUs, as NVML knows them, or the CPU
* profile   budget, data, sizes, devices: gpu (five minutes), cpu (embedded)
* capture   a hand-edited training module -> the codemod that makes the same edits
* context   what must be equal for two runs to be compared
* verdict   samples x prediction -> a word; arithmetic only
* noise     how far val_bpb moves by itself, as measured elsewhere: the prior
* evidence  what is known: trials that have ended, claims, decisions
* plan      which trials an experiment still needs
* channel   JSON lines over inherited pipes: what the processes of a trial say
* namespaces  a file system of a process's own, where Landlock is missing
* sandbox   what a process may reach: Landlock and seccomp, proved by what must fail
* scratch   measure and remove what a trial wrote, however deep
* process   a child: forked from a warm parent, confined, ended for certain
* memory    what two processes of a trial share: rows, questions, answers
* device_memory  the same of a GPU: CUDA IPC
* launch    Trial -> Result: child processes on one device, ended for certain
* training  train (the ONE file that codemods rewrite) and what surrounds it in a trial
* judge     a trained model -> val_bpb, from logits, out of the mutant's reach
* store     trials and verdicts <-> runs/ (the journal) <-> runs.duckdb
* pipeline  the few functions that call the stages in this order
* agent     the model API: spec -> codemod, checked, within a budget
* report    the verdict table, and the same for programs
* plugin    the pytest hooks, items, scheduler, live progress
* session   pytest in a child process, and the document that it leaves
* queue     sessions that wait for their turn, and who runs them
* cli       the command ``deltaspec``: `deltaspec run`
"""
