/* NVML's functions for three GPUs: the first two are joined by two links, the third has no NVLink. */
#include <string.h>

static int devices[3];

static int index_of(void *device) { return (int)((int *)device - devices); }

int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int result) { return result == 15 ? "GPU is lost" : "other"; }

int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    strncpy(text, "580.159.04", size);
    return 0;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = 3;
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = &devices[index];
    return 0;
}

int nvmlDeviceGetName(void *device, char *text, unsigned size) {
#ifdef LOST
    return 15;
#endif
    strncpy(text, index_of(device) == 2 ? "NVIDIA L4" : "NVIDIA H200", size);
    return 0;
}

int nvmlDeviceGetNvLinkState(void *device, unsigned link, unsigned *active) {
    if (index_of(device) == 2) return 3; /* not supported */
    if (link > 2) return 2;              /* invalid argument */
    *active = link < 2;
    return 0;
}

int nvmlDeviceGetP2PStatus(void *one, void *other, int caps, unsigned *status) {
    *status = caps == 2 && index_of(one) < 2 && index_of(other) < 2 ? 0 : 5;
    return 0;
}
