/* A stand-in for the driver's libnvidia-ml.so.1.
 *
 * It answers from the file that FAKE_NVML names, read anew for each question, so that a
 * test can change the machine while it is being asked. tests/nvml/__init__.py writes
 * that file: fields between tabs, "-" for what a GPU does not support.
 *
 *   line 1:      driver version, CUDA version, error of nvmlInit
 *   one a GPU:   the fields of struct gpu, in their order
 */

#define _DEFAULT_SOURCE
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6,
       TOO_SMALL = 7, MAX_GPUS = 16 };

typedef unsigned long long u64;
typedef struct { unsigned version; u64 total, reserved, free, used; } Memory;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } Process;

struct gpu {
    char *uuid, *name, *total_mib, *used_mib, *reserved_mib, *capability, *cores;
    char *error, *sm_mhz, *milliwatts, *celsius, *uncorrected;
    char *compute, *graphics; /* pid:MiB,pid:MiB */
};

static _Thread_local char text[65536], *driver, *cuda, *init_error;
static _Thread_local struct gpu gpus[MAX_GPUS];
static _Thread_local unsigned count;
static int users;

static int look(void) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return 999;
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    char *rest = text, *line = strsep(&rest, "\n");
    driver = strsep(&line, "\t");
    cuda = strsep(&line, "\t");
    init_error = strsep(&line, "\t");
    for (count = 0; count < MAX_GPUS && (line = strsep(&rest, "\n")) && *line; count++) {
        char **field = (char **)&gpus[count];
        for (size_t i = 0; i < sizeof(struct gpu) / sizeof(char *); i++)
            if (!(field[i] = strsep(&line, "\t"))) return 999;
    }
    return users ? OK : UNINITIALIZED;
}

/* A handle is the GPU's place in the file, counted from 1. */
static int find(void *handle, struct gpu **found) {
    int code = look();
    if (code) return code;
    size_t index = (size_t)handle - 1;
    if (index >= count) return INVALID;
    *found = &gpus[index];
    return atoi((*found)->error);
}

static int number(void *handle, size_t field, u64 *answer) {
    struct gpu *gpu;
    int code = find(handle, &gpu);
    if (code) return code;
    char *value = ((char **)gpu)[field];
    if (!strcmp(value, "-")) return UNSUPPORTED;
    *answer = strtoull(value, NULL, 10);
    return OK;
}

#define FIELD(name) (offsetof(struct gpu, name) / sizeof(char *))

static int number32(void *handle, size_t field, unsigned *answer) {
    u64 wide;
    int code = number(handle, field, &wide);
    if (!code) *answer = (unsigned)wide;
    return code;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    int code = look();
    if (code != OK && code != UNINITIALIZED) return code;
    if ((code = atoi(init_error))) return code;
    users++;
    return OK;
}

int nvmlShutdown(void) {
    if (!users) return UNINITIALIZED;
    users--;
    return OK;
}

const char *nvmlErrorString(int code) {
    return code == 21 ? "No data" : "An error that this stand-in does not know";
}

int nvmlSystemGetDriverVersion(char *answer, unsigned size) {
    int code = look();
    if (!code) snprintf(answer, size, "%s", driver);
    return code;
}

int nvmlSystemGetCudaDriverVersion_v2(int *answer) {
    int code = look();
    if (!code) *answer = atoi(cuda);
    return code;
}

int nvmlDeviceGetCount_v2(unsigned *answer) {
    int code = look();
    if (!code) *answer = count;
    return code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **answer) {
    struct gpu *gpu;
    int code = find((void *)(size_t)(index + 1), &gpu);
    if (!code) *answer = (void *)(size_t)(index + 1);
    return code;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **answer) {
    int code = look();
    if (code) return code;
    for (unsigned i = 0; i < count; i++)
        if (!strcmp(gpus[i].uuid, uuid)) return nvmlDeviceGetHandleByIndex_v2(i, answer);
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(void *handle, char *answer, unsigned size) {
    struct gpu *gpu;
    int code = find(handle, &gpu);
    if (!code) snprintf(answer, size, "%s", gpu->uuid);
    return code;
}

int nvmlDeviceGetName(void *handle, char *answer, unsigned size) {
    struct gpu *gpu;
    int code = find(handle, &gpu);
    if (!code) snprintf(answer, size, "%s", gpu->name);
    return code;
}

int nvmlDeviceGetMemoryInfo_v2(void *handle, Memory *answer) {
    u64 total, used, reserved;
    int code;
    if (answer->version != (sizeof(Memory) | 2 << 24)) return 25;
    if ((code = number(handle, FIELD(total_mib), &total)) ||
        (code = number(handle, FIELD(used_mib), &used)) ||
        (code = number(handle, FIELD(reserved_mib), &reserved)))
        return code;
    answer->total = total << 20;
    answer->used = used << 20;
    answer->reserved = reserved << 20;
    answer->free = answer->total - answer->used - answer->reserved;
    return OK;
}

int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    struct gpu *gpu;
    int code = find(handle, &gpu);
    if (code) return code;
    return sscanf(gpu->capability, "%d.%d", major, minor) == 2 ? OK : UNSUPPORTED;
}

int nvmlDeviceGetMinorNumber(void *handle, unsigned *minor) {
    struct gpu *gpu;
    int code = find(handle, &gpu);
    if (code) return code;
    *minor = (unsigned)(gpu - gpus);
    return OK;
}

int nvmlDeviceGetCpuAffinity(void *handle, unsigned size, u64 *words) {
    struct gpu *gpu;
    int code = find(handle, &gpu);
    if (code) return code;
    if (!strcmp(gpu->cores, "-")) return UNSUPPORTED;
    memset(words, 0, size * sizeof *words);
    for (char *one, *rest = gpu->cores; (one = strsep(&rest, ","));) {
        unsigned core = (unsigned)atoi(one);
        if (!*one) continue;
        if (core / 64 >= size) return TOO_SMALL;
        words[core / 64] |= 1ull << core % 64;
    }
    return OK;
}

int nvmlDeviceGetClockInfo(void *handle, int clock, unsigned *answer) {
    return clock == 1 ? number32(handle, FIELD(sm_mhz), answer) : INVALID;
}

int nvmlDeviceGetPowerUsage(void *handle, unsigned *answer) {
    return number32(handle, FIELD(milliwatts), answer);
}

int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *answer) {
    return sensor == 0 ? number32(handle, FIELD(celsius), answer) : INVALID;
}

int nvmlDeviceGetTotalEccErrors(void *handle, int type, int counter, u64 *answer) {
    return type == 1 && counter == 0 ? number(handle, FIELD(uncorrected), answer) : INVALID;
}

static int processes(void *handle, size_t field, unsigned *size, Process *answer) {
    struct gpu *gpu;
    int code = find(handle, &gpu);
    if (code) return code;
    char *list = ((char **)gpu)[field];
    if (!strcmp(list, "-")) return UNSUPPORTED;
    unsigned found = 0, room = *size;
    for (char *one; (one = strsep(&list, ","));) {
        if (!*one) continue;
        if (answer && found < room) {
            char *used = strchr(one, ':') + 1;
            u64 bytes = *used == '-' ? ~0ull : strtoull(used, NULL, 10) << 20;
            answer[found] = (Process){.pid = (unsigned)atoi(one), .used = bytes};
        }
        found++;
    }
    *size = found;
    return found > room ? TOO_SMALL : OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *size, Process *all) {
    return processes(handle, FIELD(compute), size, all);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *size, Process *all) {
    return processes(handle, FIELD(graphics), size, all);
}
