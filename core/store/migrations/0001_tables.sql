-- Append-only: no keys, no indexes, no UPDATE, no DELETE, so that a killed process cannot
-- damage the file.  Everything here can be rebuilt from runs/.

create table contexts (
    context varchar,
    profile varchar,
    budget_seconds double,
    device varchar,
    torch varchar,
    attention varchar,
    data varchar,
    base varchar,
    numerics varchar,
    scored_tokens bigint
);
comment on table contexts is 'What must be equal for two runs to be compared';
comment on column contexts.context is 'Digest of the other columns';
comment on column contexts.profile is 'gpu or cpu';
comment on column contexts.budget_seconds is 'Training time of a trial';
comment on column contexts.device is 'Model of the GPU or CPU';
comment on column contexts.torch is 'Version with its build';
comment on column contexts.attention is 'Backend that attends';
comment on column contexts.data is 'Fingerprint of corpus, tokenizer and packing';
comment on column contexts.base is 'Digest of the base module, profile sizes included';
comment on column contexts.numerics is 'Digest of the files that trainer, server and judge run';
comment on column contexts.scored_tokens is 'Validation tokens that the judge asks for';

create table experiments (
    experiment varchar,
    id varchar,
    file varchar,
    name varchar,
    swept varchar,
    hypothesis varchar,
    change varchar,
    tags varchar[],
    delta_bpb double,
    sd_bpb double,
    within_bpb double,
    on_profile varchar,
    mutant varchar
);
comment on table experiments is 'What was claimed: one row for each wording of a claim and mutant that tests it';
comment on column experiments.experiment is 'Digest of the claim';
comment on column experiments.id is 'The pytest id';
comment on column experiments.file is 'The spec file';
comment on column experiments.name is 'The name within the file, without swept values';
comment on column experiments.swept is 'Swept values by axis, as JSON';
comment on column experiments.hypothesis is 'Why the change should help, or harm';
comment on column experiments.change is 'What to change, as an instruction';
comment on column experiments.tags is 'Words that -k matches';
comment on column experiments.delta_bpb is 'Predicted change in val_bpb; NULL: nothing is predicted';
comment on column experiments.sd_bpb is 'How sure the author is: one standard deviation of the prediction; NULL: not said';
comment on column experiments.within_bpb is 'How far from 0 still counts as the same; NULL unless delta_bpb is 0';
comment on column experiments.on_profile is 'The profile that the prediction speaks of; NULL without a prediction';
comment on column experiments.mutant is 'Digest of the module that tests the claim';

create table mutants (
    mutant varchar,
    base varchar,
    codemods varchar[],
    configuration varchar,
    diff varchar,
    source varchar
);
comment on table mutants is 'Training modules that were run; the base is the mutant of no changes';
comment on column mutants.mutant is 'Digest of the source without comments, layout and docstrings';
comment on column mutants.base is 'Digest of the module that was changed';
comment on column mutants.codemods is 'What changed it, in order; empty for the base';
comment on column mutants.configuration is 'Resolved module constants, as JSON';
comment on column mutants.diff is 'Unified diff against the base; empty for the base';
comment on column mutants.source is 'The whole module';

create table symbol_changes (
    mutant varchar,
    symbol varchar,
    kind varchar,
    edit varchar,
    old_source varchar,
    new_source varchar
);
comment on table symbol_changes is 'What a mutant changes, symbol by symbol';
comment on column symbol_changes.mutant is 'Digest of the mutant';
comment on column symbol_changes.symbol is 'As Block.forward, or ROPE_BASE';
comment on column symbol_changes.kind is 'constant, function, class, import or statement';
comment on column symbol_changes.edit is 'added, changed, removed or moved';
comment on column symbol_changes.old_source is 'The symbol before; NULL where it was not there';
comment on column symbol_changes.new_source is 'The symbol after; NULL where it is not there any more';

create table runs (
    run varchar,
    context varchar,
    mutant varchar,
    experiment varchar,
    claim varchar,
    seed integer,
    status varchar,
    crash varchar,
    phase varchar,
    message varchar,
    log_tail varchar[],
    val_bpb double,
    val_nats double,
    val_bytes bigint,
    val_tokens bigint,
    train_seconds double,
    train_tokens bigint,
    steps integer,
    start_seconds double,
    save_seconds double,
    serve_seconds double,
    score_seconds double,
    wall_seconds double,
    peak_mib double,
    left_behind integer,
    device varchar,
    started_at timestamp
);
comment on table runs is 'Trials, one row each, finished or not';
comment on column runs.run is 'Names the folder below runs/';
comment on column runs.context is 'Digest of the context';
comment on column runs.mutant is 'Digest of the mutant that was trained';
comment on column runs.experiment is 'For whom it was run; NULL for a run of the base';
comment on column runs.claim is 'The prediction that it was run for, as it counts under its profile; NULL for the base';
comment on column runs.seed is 'Keys everything random; runs of one seed are compared in pairs';
comment on column runs.status is 'finished, crashed, invalid, killed or infrastructure';
comment on column runs.crash is 'oom, nan, exception, hang or overran; NULL unless crashed';
comment on column runs.phase is 'Where it ended: start, train, save, serve, score or done';
comment on column runs.message is 'What went wrong, in one sentence; empty for a finished run';
comment on column runs.log_tail is 'The last lines of its log; empty for a finished run';
comment on column runs.val_bpb is 'Bits per byte on validation rows; NULL unless finished';
comment on column runs.val_nats is 'Loss summed over the scored tokens; NULL unless finished';
comment on column runs.val_bytes is 'Bytes of the scored tokens; NULL unless finished';
comment on column runs.val_tokens is 'Tokens that were scored; NULL unless finished';
comment on column runs.train_seconds is 'On the clock of the budget (wall on a GPU, CPU time on a CPU), to the end of the last step; NULL if it did not get there';
comment on column runs.train_tokens is 'Tokens that were trained on; NULL before the first step';
comment on column runs.steps is 'Optimizer steps';
comment on column runs.start_seconds is 'Importing, building, compiling and rehearsing; NULL if it did not get there';
comment on column runs.save_seconds is 'Saving the weights; NULL if it did not get there';
comment on column runs.serve_seconds is 'Loading them in a fresh process; NULL if it did not get there';
comment on column runs.score_seconds is 'Scoring; NULL if it did not get there';
comment on column runs.wall_seconds is 'The whole trial';
comment on column runs.peak_mib is 'Device memory on a GPU, else resident memory of the trainer';
comment on column runs.left_behind is 'Processes that had to be ended after the trial';
comment on column runs.device is 'UUID of the GPU, or cpu';
comment on column runs.started_at is 'UTC';

create table curves (
    run varchar,
    step integer,
    seconds double,
    tokens bigint,
    loss_nats double
);
comment on table curves is 'Training loss, one row a step';
comment on column curves.run is 'The run';
comment on column curves.step is 'Counts from 1';
comment on column curves.seconds is 'Since the clock began';
comment on column curves.tokens is 'Handed out so far';
comment on column curves.loss_nats is 'Mean training loss of the step, in nats a token';

create table verdicts (
    verdict varchar,
    experiment varchar,
    mutant varchar,
    context varchar,
    claim varchar,
    attempt integer,
    word varchar,
    reason varchar,
    delta_bpb double,
    lower_bpb double,
    upper_bpb double,
    predicted_bpb double,
    size_held boolean,
    replication double,
    noise_sd double,
    noise_df double,
    looks integer,
    candidates integer,
    bases integer,
    seconds double,
    runs varchar[],
    decided_at timestamp
);
comment on table verdicts is 'Decisions, in the order in which they were made';
comment on column verdicts.verdict is 'Names the file below runs/';
comment on column verdicts.experiment is 'Digest of the claim';
comment on column verdicts.mutant is 'Digest of the mutant';
comment on column verdicts.context is 'Digest of the context';
comment on column verdicts.claim is 'What was decided: the prediction as it counts under this profile';
comment on column verdicts.attempt is '0 for the first test of this mutant, then one more for each test on fresh seeds';
comment on column verdicts.word is 'supported, refuted, inconclusive, invalid, crashed, or measured where nothing was to be decided';
comment on column verdicts.reason is 'Why this word, in one sentence';
comment on column verdicts.delta_bpb is 'Measured change in val_bpb; NULL for crashed and invalid';
comment on column verdicts.lower_bpb is 'Lower end of the 90 % interval; NULL for crashed and invalid';
comment on column verdicts.upper_bpb is 'Upper end of the 90 % interval; NULL for crashed and invalid';
comment on column verdicts.predicted_bpb is 'Predicted change under this profile; NULL: nothing is predicted here';
comment on column verdicts.size_held is 'Whether the predicted size lies in the interval; NULL without a prediction';
comment on column verdicts.replication is 'Chance that a repetition also says supported; NULL for other words';
comment on column verdicts.noise_sd is 'Standard deviation of val_bpb over seeds that was used';
comment on column verdicts.noise_df is 'Degrees of freedom behind noise_sd';
comment on column verdicts.looks is 'Candidate runs at which the design ends; it may decide before';
comment on column verdicts.candidates is 'Seeds of the mutant that the decision rests on';
comment on column verdicts.bases is 'Runs of the base that it rests on';
comment on column verdicts.seconds is 'Wall-clock time of the runs of the mutant';
comment on column verdicts.runs is 'Candidate and base runs that the decision rests on';
comment on column verdicts.decided_at is 'UTC';

comment on table migrations is 'Changes of the schema that this file has seen';
comment on column migrations.number is 'They were applied in this order';
comment on column migrations.name is 'The file below core/store/migrations/';
