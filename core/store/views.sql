-- Made anew at each opening; the newest attempt speaks for an experiment.

create or replace view leaderboard as
with latest as (
    select *, row_number() over (
        partition by experiment, context order by attempt desc, decided_at desc
    ) as nth
    from verdicts
)
select
    c.profile, e.id, v.word, v.delta_bpb, v.lower_bpb, v.upper_bpb, v.predicted_bpb,
    v.candidates as seeds, v.attempt, v.context, v.mutant, v.decided_at
from latest v
join (select distinct on (experiment) * from experiments) e using (experiment)
join (select distinct on (context) * from contexts) c using (context)
where v.nth = 1
order by c.profile, v.context, v.delta_bpb nulls last;
comment on view leaderboard is 'Experiments by measured change, best first, within each context';
comment on column leaderboard.profile is 'gpu or cpu';
comment on column leaderboard.id is 'The pytest id of the experiment';
comment on column leaderboard.word is 'supported, refuted, inconclusive, invalid, crashed or measured';
comment on column leaderboard.delta_bpb is 'Measured change in val_bpb, negative is better; NULL for crashed and invalid';
comment on column leaderboard.lower_bpb is 'Lower end of the 90 % interval';
comment on column leaderboard.upper_bpb is 'Upper end of the 90 % interval';
comment on column leaderboard.predicted_bpb is 'Predicted change under this profile; NULL: nothing is predicted here';
comment on column leaderboard.seeds is 'Candidate runs behind the verdict';
comment on column leaderboard.attempt is '0 for the first test of this mutant, then one more for each test on fresh seeds';
comment on column leaderboard.context is 'Digest of the context; runs are compared within one only';
comment on column leaderboard.mutant is 'Digest of the mutant';
comment on column leaderboard.decided_at is 'UTC';

create or replace view deltas as
with base as (
    select r.context, r.device, r.seed, avg(r.val_bpb) as base_bpb
    from runs r
    join (select distinct on (context) * from contexts) c using (context)
    where r.mutant = c.base and r.status = 'finished'
    group by all
)
select
    e.id, r.context, r.seed, r.val_bpb, b.base_bpb,
    r.val_bpb - b.base_bpb as delta_bpb, r.steps, r.train_tokens, r.peak_mib, r.run
from runs r
join (select distinct on (context) * from contexts) c using (context)
join base b on (b.context, b.device, b.seed) = (r.context, r.device, r.seed)
left join (select distinct id, mutant from experiments) e using (mutant)
where r.status = 'finished' and r.mutant <> c.base;
comment on view deltas is 'Finished runs beside the base run of the same seed on the same device';
comment on column deltas.id is 'The pytest id of the experiment that it tests; a row for each of several';
comment on column deltas.context is 'Digest of the context';
comment on column deltas.seed is 'The seed of both';
comment on column deltas.val_bpb is 'Bits per byte of the mutant';
comment on column deltas.base_bpb is 'Bits per byte of the base with the same seed on the same device; the mean if it ran twice';
comment on column deltas.delta_bpb is 'val_bpb minus base_bpb; negative is better';
comment on column deltas.steps is 'Optimizer steps of the mutant';
comment on column deltas.train_tokens is 'Tokens that the mutant was trained on';
comment on column deltas.peak_mib is 'Memory of the mutant''s trainer';
comment on column deltas.run is 'Names the folder below runs/';

create or replace view changes as
select
    s.symbol, s.kind, s.edit, s.old_source, s.new_source,
    l.id, l.profile, l.word, l.delta_bpb, l.context, s.mutant
from (select distinct * from symbol_changes) s
left join leaderboard l using (mutant);
comment on view changes is 'What was edited, symbol by symbol, and what became of it';
comment on column changes.symbol is 'As Block.forward, or ROPE_BASE';
comment on column changes.kind is 'constant, function, class, import or statement';
comment on column changes.edit is 'added, changed, removed or moved';
comment on column changes.old_source is 'The symbol before; NULL where it was not there';
comment on column changes.new_source is 'The symbol after; NULL where it is not there any more';
comment on column changes.id is 'The pytest id of the experiment; NULL before a verdict';
comment on column changes.profile is 'gpu or cpu; NULL before a verdict';
comment on column changes.word is 'The verdict on the whole mutant; NULL before a verdict';
comment on column changes.delta_bpb is 'Measured change of the whole mutant; NULL when it has no estimate';
comment on column changes.context is 'Digest of the context; NULL before a verdict';
comment on column changes.mutant is 'Digest of the mutant';

create or replace view conditions as
select
    r.run, r.context, r.mutant, r.seed, r.status, c.profile, c.device as device_name, r.device, r.driver, c.torch,
    r.sm_mhz, r.power_watts, r.temperature_c, r.foreign_mib, r.peak_mib,
    r.train_tokens, r.epochs, r.steps, r.train_tokens / r.train_seconds as tokens_per_second,
    r.median_step_seconds, r.p99_step_seconds,
    r.ahead_seconds, r.gap_seconds, r.start_seconds, r.train_seconds, r.save_seconds,
    r.serve_seconds, r.score_seconds, r.wall_seconds, r.compilations, r.rehearsal_mib,
    r.device_fault
from runs r
join (select distinct on (context) * from contexts) c using (context);
comment on view conditions is 'What each run was measured with, and where its seconds went';
comment on column conditions.run is 'Names the folder below runs/';
comment on column conditions.context is 'Digest of the context; runs are compared within one only';
comment on column conditions.mutant is 'Digest of the mutant';
comment on column conditions.seed is 'Keys everything random';
comment on column conditions.status is 'finished, crashed, invalid, killed or infrastructure';
comment on column conditions.profile is 'gpu or cpu';
comment on column conditions.device_name is 'Model of the GPU or CPU';
comment on column conditions.device is 'UUID of the GPU, or cpu';
comment on column conditions.driver is 'Version of the GPU''s driver; NULL on a CPU';
comment on column conditions.torch is 'Version with its build';
comment on column conditions.sm_mhz is 'Mean clock of the multiprocessors in training; NULL on a CPU and if it did not train';
comment on column conditions.power_watts is 'Mean power in training; NULL on a CPU and if it did not train';
comment on column conditions.temperature_c is 'Largest temperature in training; NULL on a CPU and if it did not train';
comment on column conditions.foreign_mib is 'Most memory that processes of others held in training; NULL on a CPU and if it did not train';
comment on column conditions.peak_mib is 'Device memory on a GPU, else resident memory of the trainer';
comment on column conditions.train_tokens is 'Tokens that were trained on';
comment on column conditions.epochs is 'Times that it read the training corpus; beyond 4 it learns it by heart';
comment on column conditions.steps is 'Optimizer steps';
comment on column conditions.tokens_per_second is 'Of training';
comment on column conditions.median_step_seconds is 'Median of the seconds between steps';
comment on column conditions.p99_step_seconds is '99 of 100 steps took no longer';
comment on column conditions.ahead_seconds is 'Importing while the trial before it was on the device';
comment on column conditions.gap_seconds is 'From the end of the clock before it on the device to the start of its own';
comment on column conditions.start_seconds is 'From the device to the clock: building, compiling and rehearsing';
comment on column conditions.train_seconds is 'On the clock of the budget';
comment on column conditions.save_seconds is 'Saving the weights';
comment on column conditions.serve_seconds is 'Loading them in a fresh process';
comment on column conditions.score_seconds is 'Scoring';
comment on column conditions.wall_seconds is 'For how long it had the device';
comment on column conditions.compilations is 'Graphs that torch.compile compiled while the clock ran';
comment on column conditions.rehearsal_mib is 'GPU memory still allocated once the rehearsal was dropped; NULL on a CPU';
comment on column conditions.device_fault is 'Why the device was taken out after the run; NULL if it was sound';
