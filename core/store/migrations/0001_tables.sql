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
comment on column contexts.data is 'Fingerprint of corpus, tokenizer and packing';
comment on column contexts.base is 'Digest of the base module, profile sizes included';
comment on column contexts.numerics is 'Digest of the files that trainer, server, judge run';

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
comment on table experiments is 'What was claimed, one row for each wording of a claim';
comment on column experiments.experiment is 'Digest of the claim';
comment on column experiments.id is 'The pytest id';
comment on column experiments.swept is 'Swept values by axis, as JSON';
comment on column experiments.delta_bpb is 'Predicted change in val_bpb; NULL: nothing is predicted';

create table mutants (
    mutant varchar,
    base varchar,
    codemods varchar[],
    configuration varchar,
    diff varchar,
    source varchar
);
comment on table mutants is 'Training modules that were run; the base is the mutant of no changes';
comment on column mutants.mutant is 'Digest of the normalised source';
comment on column mutants.configuration is 'Resolved module constants, as JSON';
comment on column mutants.diff is 'Unified diff against the base; empty for the base';

create table symbol_changes (
    mutant varchar,
    symbol varchar,
    kind varchar,
    edit varchar,
    old_source varchar,
    new_source varchar
);
comment on table symbol_changes is 'What a mutant changes, symbol by symbol';
comment on column symbol_changes.symbol is 'As Block.forward, or ROPE_BASE';
comment on column symbol_changes.edit is 'added, changed or removed';

create table runs (
    run varchar,
    context varchar,
    mutant varchar,
    experiment varchar,
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
comment on column runs.experiment is 'For whom it was run; NULL for a run of the base';
comment on column runs.status is 'finished, crashed, invalid, killed or infrastructure';
comment on column runs.crash is 'oom, nan, exception, hang or overran; NULL unless crashed';
comment on column runs.val_bpb is 'Bits per byte on validation rows; NULL unless finished';
comment on column runs.started_at is 'UTC';
comment on column runs.peak_mib is 'Device memory on a GPU, else resident memory of the trainer';

create table curves (
    run varchar,
    step integer,
    seconds double,
    tokens bigint,
    loss_nats double
);
comment on table curves is 'Training loss, one row a step; seconds are the clock''s';

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
    candidates integer,
    bases integer,
    seconds double,
    runs varchar[],
    decided_at timestamp
);
comment on table verdicts is 'Decisions, in the order in which they were made';
comment on column verdicts.decided_at is 'UTC';
comment on column verdicts.claim is 'What was decided: the prediction as it counts under this profile';
comment on column verdicts.attempt is '0 for the first test of this mutant, then one more for each test on fresh seeds';
comment on column verdicts.word is 'supported, refuted, inconclusive, invalid, crashed, or measured where nothing was to be decided';
comment on column verdicts.delta_bpb is 'Measured change in val_bpb; NULL for crashed and invalid';
comment on column verdicts.lower_bpb is 'Lower end of the 90 % interval';
comment on column verdicts.predicted_bpb is 'Predicted change under this profile; NULL: nothing is predicted here';
comment on column verdicts.size_held is 'Whether the predicted size lies in the interval; NULL without a prediction';
comment on column verdicts.replication is 'Chance that a repetition also says supported; NULL for other words';
comment on column verdicts.runs is 'Candidate and base runs that the decision rests on';
