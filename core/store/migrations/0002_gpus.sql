-- What a trial on a GPU was measured with.  NULL in the rows of older runs.

alter table runs add column median_step_seconds double;
alter table runs add column p99_step_seconds double;
alter table runs add column ahead_seconds double;
alter table runs add column gap_seconds double;
alter table runs add column compilations integer;
alter table runs add column rehearsal_mib double;
alter table runs add column driver varchar;
alter table runs add column sm_mhz double;
alter table runs add column power_watts double;
alter table runs add column temperature_c double;
alter table runs add column foreign_mib double;
alter table runs add column device_fault varchar;
alter table contexts add column shared boolean;

comment on column runs.start_seconds is 'From the device to the clock: what is left of importing, then building, compiling and rehearsing; NULL if it did not get there';
comment on column runs.wall_seconds is 'For how long it had the device';
comment on column runs.median_step_seconds is 'Median of the seconds between steps; NULL without two steps';
comment on column runs.p99_step_seconds is '99 of 100 steps took no longer; NULL without two steps';
comment on column runs.ahead_seconds is 'For how long its processes were up, importing, before they had the device';
comment on column runs.gap_seconds is 'From the end of the clock before it on the device to the start of its own; NULL for the first of a session on the device, and if it did not train to the end';
comment on column runs.compilations is 'Graphs that torch.compile compiled while the clock ran: 0 unless the module changes shapes; NULL if it did not get there';
comment on column runs.rehearsal_mib is 'GPU memory still allocated once the rehearsal was dropped; NULL on a CPU, or if it did not get there';
comment on column runs.driver is 'Version of the GPU''s driver; NULL on a CPU';
comment on column runs.sm_mhz is 'Mean clock of the GPU''s multiprocessors in training; NULL on a CPU and if it did not train';
comment on column runs.power_watts is 'Mean power of the GPU in training; NULL on a CPU and if it did not train';
comment on column runs.temperature_c is 'Largest temperature of the GPU in training; NULL on a CPU and if it did not train';
comment on column runs.foreign_mib is 'Most memory of the GPU that processes of others held in training; NULL on a CPU and if it did not train';
comment on column runs.device_fault is 'Why the device was taken out after the run; NULL if it was sound';
comment on column contexts.shared is 'Other processes were allowed on the GPUs; NULL in older contexts';
