// SPDX-License-Identifier: GPL-2.0
// The cumulative successor: it replaces every patch that was loaded before.
#define KLPT_REPLACE true
#define KLPT_VMLINUX
#define KLPT_TARGET
#include "klpt_patch.h"
