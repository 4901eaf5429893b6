"""The model API: a spec goes in, a codemod comes out, and what that cost is known.

* prices        what a model's tokens cost
* budget        what may be spent, checked before each call
* calls         one call: asked, retried, journalled, never paid twice
* prompt        what a model is told; its words are in prompts/
* candidate     a codemod as a model wrote it: what its text alone shows
* dryrun        a codemod applied, examined, applied again: failures with line and reason
* lookup        what a model may look up: symbols, what was tried
* conversation  the loop for one experiment, and the check by a fresh reader
* writer        several conversations, beside what trains

Research from the history will be a conversation of its own: with other words and tools,
and with these calls.
"""
