// SPDX-License-Identifier: GPL-2.0
// The kernel refuses it, after its directory has been in sysfs for a moment.
#define KLPT_REPLACE false
#define KLPT_VMLINUX
#define KLPT_MISSING
#include "klpt_patch.h"
