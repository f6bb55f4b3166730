/*
 * LD_PRELOAD shim that counts the durable steps of a process and can kill it at one of them.
 *
 * A durable step is a call of fsync, fdatasync, rename, renameat, renameat2, mkdir, mkdirat, unlink, unlinkat, rmdir, link or
 * linkat through libc. Raw system calls pass unseen.
 *
 * KILLSTEP_LOG=FILE          append one line a step, before it is done: "n name path"; and "flip path" for each flip
 * KILLSTEP_AT=N              SIGKILL to ourselves at step N, counted from 1
 * KILLSTEP_WHEN=before|after before it is done (default), or after
 * KILLSTEP_FLIP=PART         after an fsync or fdatasync of a file whose path contains PART: turn one bit of the byte in its
 *                            middle, through a new descriptor, and fsync that
 * KILLSTEP_FLIP_COUNT=N      in so many files (default 1)
 *
 * Steps are counted for each process: a child that inherits the environment begins at 1 again, but after fork without exec it
 * counts on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_long steps;
static atomic_long flips;

static long number(const char *name, long otherwise)
{
	const char *text = getenv(name);
	return text && *text ? strtol(text, NULL, 10) : otherwise;
}

/* One write with O_APPEND, so that lines of several threads do not mix. */
static void note(const char *line, int length)
{
	const char *path = getenv("KILLSTEP_LOG");
	if (!path || !*path || length <= 0)
		return;
	int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (fd < 0)
		return;
	if (write(fd, line, (size_t)length) != length)
		_exit(97);
	close(fd);
}

static void die(void)
{
	kill(getpid(), SIGKILL);
	for (;;)
		pause();
}

static int of_fd(int fd, char *path, size_t size)
{
	char link[64];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, path, size - 1);
	path[length > 0 ? length : 0] = 0;
	return length > 0;
}

/* The path a step is about, made whole if it is relative to a directory descriptor. */
static void full(int dir, const char *path, char *out, size_t size)
{
	char base[4096];
	if (path[0] != '/' && dir != AT_FDCWD && of_fd(dir, base, sizeof base))
		snprintf(out, size, "%s/%s", base, path);
	else
		snprintf(out, size, "%s", path);
}

/* Counts a step and kills before it, if it is the one. Returns whether to kill after it. */
static int begin(const char *name, const char *path)
{
	char line[8400];
	long n = atomic_fetch_add(&steps, 1) + 1;
	int saved = errno;
	int length = snprintf(line, sizeof line, "%ld %s %s\n", n, name, path);
	note(line, length < (int)sizeof line ? length : (int)sizeof line - 1);
	errno = saved;
	if (n != number("KILLSTEP_AT", 0))
		return 0;
	const char *when = getenv("KILLSTEP_WHEN");
	if (when && strcmp(when, "after") == 0)
		return 1;
	die();
	return 0;
}

static int end(int result, int kill_now)
{
	if (kill_now)
		die();
	return result;
}

static void flip(const char *path)
{
	const char *part = getenv("KILLSTEP_FLIP");
	char line[8400];
	unsigned char byte;
	struct stat about;
	if (!part || !*part || !strstr(path, part))
		return;
	int saved = errno;
	int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		goto out;
	if (fstat(fd, &about) != 0 || !S_ISREG(about.st_mode) || about.st_size == 0)
		goto close;
	if (atomic_fetch_add(&flips, 1) >= number("KILLSTEP_FLIP_COUNT", 1))
		goto close;
	off_t middle = about.st_size / 2;
	if (pread(fd, &byte, 1, middle) != 1)
		goto close;
	byte ^= 0x10;
	if (pwrite(fd, &byte, 1, middle) != 1 || syscall(SYS_fsync, fd) != 0)
		goto close;
	note(line, snprintf(line, sizeof line, "flip %s\n", path));
close:
	close(fd);
out:
	errno = saved;
}

/* The next definition of the function that asks, which is libc's. */
#define NEXT(type, name) ((type)dlsym(RTLD_NEXT, name))

int fsync(int fd)
{
	char path[4096];
	of_fd(fd, path, sizeof path);
	int kill_now = begin("fsync", path);
	int result = NEXT(int (*)(int), "fsync")(fd);
	if (result == 0)
		flip(path);
	return end(result, kill_now);
}

int fdatasync(int fd)
{
	char path[4096];
	of_fd(fd, path, sizeof path);
	int kill_now = begin("fdatasync", path);
	int result = NEXT(int (*)(int), "fdatasync")(fd);
	if (result == 0)
		flip(path);
	return end(result, kill_now);
}

static int begin_two(const char *name, int from_dir, const char *from, int to_dir, const char *to)
{
	char a[4096], b[4096], both[8250];
	full(from_dir, from, a, sizeof a);
	full(to_dir, to, b, sizeof b);
	snprintf(both, sizeof both, "%s -> %s", a, b);
	return begin(name, both);
}

static int begin_at(const char *name, int dir, const char *path)
{
	char whole[8250];
	full(dir, path, whole, sizeof whole);
	return begin(name, whole);
}

int rename(const char *from, const char *to)
{
	int kill_now = begin_two("rename", AT_FDCWD, from, AT_FDCWD, to);
	return end(NEXT(int (*)(const char *, const char *), "rename")(from, to), kill_now);
}

int renameat(int from_dir, const char *from, int to_dir, const char *to)
{
	int kill_now = begin_two("renameat", from_dir, from, to_dir, to);
	return end(NEXT(int (*)(int, const char *, int, const char *), "renameat")(from_dir, from, to_dir, to), kill_now);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned int flags)
{
	int kill_now = begin_two("renameat2", from_dir, from, to_dir, to);
	return end(NEXT(int (*)(int, const char *, int, const char *, unsigned int), "renameat2")(from_dir, from, to_dir, to, flags),
		   kill_now);
}

int mkdir(const char *path, mode_t mode)
{
	int kill_now = begin("mkdir", path);
	return end(NEXT(int (*)(const char *, mode_t), "mkdir")(path, mode), kill_now);
}

int mkdirat(int dir, const char *path, mode_t mode)
{
	int kill_now = begin_at("mkdirat", dir, path);
	return end(NEXT(int (*)(int, const char *, mode_t), "mkdirat")(dir, path, mode), kill_now);
}

int unlink(const char *path)
{
	int kill_now = begin("unlink", path);
	return end(NEXT(int (*)(const char *), "unlink")(path), kill_now);
}

int unlinkat(int dir, const char *path, int flags)
{
	int kill_now = begin_at("unlinkat", dir, path);
	return end(NEXT(int (*)(int, const char *, int), "unlinkat")(dir, path, flags), kill_now);
}

int rmdir(const char *path)
{
	int kill_now = begin("rmdir", path);
	return end(NEXT(int (*)(const char *), "rmdir")(path), kill_now);
}

int link(const char *from, const char *to)
{
	int kill_now = begin_two("link", AT_FDCWD, from, AT_FDCWD, to);
	return end(NEXT(int (*)(const char *, const char *), "link")(from, to), kill_now);
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags)
{
	int kill_now = begin_two("linkat", from_dir, from, to_dir, to);
	return end(NEXT(int (*)(int, const char *, int, const char *, int), "linkat")(from_dir, from, to_dir, to, flags), kill_now);
}
