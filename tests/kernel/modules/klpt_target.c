// SPDX-License-Identifier: GPL-2.0
/*
 * The module that the tests patch: its functions can be slept in, so that a task really blocks a transition.
 *
 *   /proc/klpt/block     read: sleeps interruptibly until somebody wakes it, then says who answered
 *   /proc/klpt/killable  the same, but only a fatal signal ends the sleep (state D, as a hung NFS read)
 *   /proc/klpt/state     read: says who answered, at once
 *   /proc/klpt/wake      write: wakes the sleepers
 *
 * kthread=1 starts a kernel thread that sleeps in klpt_kthread_wait() and enters it again when it is woken: it never
 * stands outside of that function for long, so a patch of it never finishes. kthread=0 lets that thread go.
 *
 * The functions are not static and are kept whole: gcc must not rename them (.isra, .constprop), since a live patch
 * finds them by name.
 */
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>
#include <linux/wait.h>

#include "klpt.h"

static DECLARE_WAIT_QUEUE_HEAD(klpt_queue);
static atomic_t klpt_wakes = ATOMIC_INIT(0);
static struct proc_dir_entry *klpt_dir;
static struct task_struct *klpt_thread;

noinline ssize_t klpt_block_read(struct file *file, char __user *buf, size_t len, loff_t *pos)
{
	int seen = atomic_read(&klpt_wakes);

	if (*pos == 0 && wait_event_interruptible(klpt_queue, atomic_read(&klpt_wakes) != seen))
		return -ERESTARTSYS;
	return simple_read_from_buffer(buf, len, pos, "orig\n", 5);
}

noinline ssize_t klpt_killable_read(struct file *file, char __user *buf, size_t len, loff_t *pos)
{
	int seen = atomic_read(&klpt_wakes);

	if (*pos == 0 && wait_event_killable(klpt_queue, atomic_read(&klpt_wakes) != seen))
		return -EINTR;
	return simple_read_from_buffer(buf, len, pos, "orig\n", 5);
}

noinline ssize_t klpt_state_read(struct file *file, char __user *buf, size_t len, loff_t *pos)
{
	return simple_read_from_buffer(buf, len, pos, "orig\n", 5);
}

noinline void klpt_kthread_wait(void)
{
	int seen = atomic_read(&klpt_wakes);

	wait_event_interruptible(klpt_queue, kthread_should_stop() || atomic_read(&klpt_wakes) != seen);
}

static int klpt_thread_main(void *unused)
{
	while (!kthread_should_stop())
		klpt_kthread_wait();
	return 0;
}

static ssize_t klpt_wake_write(struct file *file, const char __user *buf, size_t len, loff_t *pos)
{
	atomic_inc(&klpt_wakes);
	wake_up_all(&klpt_queue);
	return len;
}

static int klpt_kthread_set(const char *value, const struct kernel_param *param)
{
	bool wanted;
	int err = kstrtobool(value, &wanted);

	if (err)
		return err;
	if (wanted && !klpt_thread) {
		struct task_struct *thread = kthread_run(klpt_thread_main, NULL, "klpt_kthread");

		if (IS_ERR(thread))
			return PTR_ERR(thread);
		klpt_thread = thread;
	} else if (!wanted && klpt_thread) {
		kthread_stop(klpt_thread);
		klpt_thread = NULL;
	}
	return 0;
}

static int klpt_kthread_get(char *buffer, const struct kernel_param *param)
{
	return sprintf(buffer, "%d\n", klpt_thread != NULL);
}

static const struct kernel_param_ops klpt_kthread_ops = { .set = klpt_kthread_set, .get = klpt_kthread_get };
module_param_cb(kthread, &klpt_kthread_ops, NULL, 0644);
MODULE_PARM_DESC(kthread, "whether a kernel thread sleeps in klpt_kthread_wait()");

static const struct proc_ops klpt_block_ops = { .proc_read = klpt_block_read };
static const struct proc_ops klpt_killable_ops = { .proc_read = klpt_killable_read };
static const struct proc_ops klpt_state_ops = { .proc_read = klpt_state_read };
static const struct proc_ops klpt_wake_ops = { .proc_write = klpt_wake_write };

static int __init klpt_init(void)
{
	klpt_dir = proc_mkdir("klpt", NULL);
	if (!klpt_dir)
		return -ENOMEM;
	if (!proc_create("block", 0444, klpt_dir, &klpt_block_ops) ||
	    !proc_create("killable", 0444, klpt_dir, &klpt_killable_ops) ||
	    !proc_create("state", 0444, klpt_dir, &klpt_state_ops) ||
	    !proc_create("wake", 0222, klpt_dir, &klpt_wake_ops)) {
		proc_remove(klpt_dir);
		return -ENOMEM;
	}
	return 0;
}

static void __exit klpt_exit(void)
{
	if (klpt_thread)
		kthread_stop(klpt_thread);
	proc_remove(klpt_dir);
}

module_init(klpt_init);
module_exit(klpt_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Target of the live patches in the tests of saltext-kgraft");
