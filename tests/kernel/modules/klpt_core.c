// SPDX-License-Identifier: GPL-2.0
// Patches the kernel itself, and does not replace others: it stacks.
#define KLPT_REPLACE false
#define KLPT_VMLINUX
#include "klpt_patch.h"
