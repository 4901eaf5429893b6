"""The machinery: a spec file goes in, a verdict comes out.

spec → mutate → gates → plan → launch → judge → store → verdict → report

* errors    every error that a user can cause, as a tree
* syntax    Python expressions, evaluated from the syntax tree and never executed
* spec      what a researcher writes: Experiment, Expect, Sweep, codemod
* mutate    source x codemods -> Mutant (source, diff, changed symbols, digest)
* gates     Mutant -> a configuration that can run, cheapest check first
* profile   budget, data, sizes, device: gpu (five minutes), cpu (embedded)
* verdict   samples x prediction -> a word; arithmetic only
* plan      which trials an experiment still needs
* launch    Trial -> Result: child processes on one device, ended for certain
* judge     a trained model -> val_bpb, from logits, out of the mutant's reach
* store     Result, Verdict, ... <-> runs/ (the journal) <-> runs.duckdb
* pipeline  the few functions that call the stages in this order
* plugin    the pytest hooks, items, live progress
* report    the verdict table
* training  train (the ONE file that codemods rewrite) and what surrounds it in a trial
"""
