use std::io;

const WORD_BITS: usize = libc::c_ulong::BITS as usize;

/// More processors than any kernel is built for (`CONFIG_NR_CPUS`).
const MAX_CPUS: usize = 1 << 16;

/// The processors that the calling thread may run on, by number, in ascending order.
///
/// `sched_getaffinity(2)`; needs no capability. Cannot fail on Linux but for a kernel with more than 65536 processors:
/// EINVAL.
pub(crate) fn current_affinity() -> io::Result<Vec<usize>> {
    let mut words = vec![0; libc::CPU_SETSIZE as usize / WORD_BITS];
    loop {
        match read_affinity(&mut words) {
            // The kernel has more processors than the set has bits.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && words.len() * WORD_BITS < MAX_CPUS => {
                words.resize(words.len() * 2, 0);
            }
            result => {
                return result.map(|()| (0..words.len() * WORD_BITS).filter(|cpu| has(&words, *cpu)).collect());
            }
        }
    }
}

/// Lets the calling thread, and no other, run on processor `cpu` only.
///
/// `sched_setaffinity(2)`; needs no capability. Errors: EINVAL where there is no such processor, or the thread's cpuset
/// has it not.
pub(crate) fn pin_to(cpu: usize) -> io::Result<()> {
    if cpu >= MAX_CPUS {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut words: Vec<libc::c_ulong> = vec![0; cpu / WORD_BITS + 1];
    words[cpu / WORD_BITS] = 1 << (cpu % WORD_BITS);
    // SAFETY: pointer and length describe `words`, which the kernel reads during the call only: a set of any length.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(words.as_slice()), words.as_ptr().cast()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn read_affinity(words: &mut [libc::c_ulong]) -> io::Result<()> {
    // SAFETY: pointer and length describe `words`, which the kernel writes during the call only: a set of any length.
    let result = unsafe { libc::sched_getaffinity(0, size_of_val(words), words.as_mut_ptr().cast()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn has(words: &[libc::c_ulong], cpu: usize) -> bool {
    words[cpu / WORD_BITS] >> (cpu % WORD_BITS) & 1 != 0
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use super::{current_affinity, has, pin_to};

    /// `Cpus_allowed_list` of proc_pid_status(5), such as "0-3,8".
    fn allowed_list() -> Vec<usize> {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            first.parse().unwrap()..=last.parse::<usize>().unwrap()
        };
        list.split(',').flat_map(range).collect()
    }

    #[test]
    fn affinity_is_what_the_kernel_says_elsewhere() {
        let cpus = current_affinity().unwrap();
        assert!(!cpus.is_empty());
        assert_eq!(cpus, allowed_list());
    }

    #[test]
    fn a_thread_is_pinned_to_each_processor_that_it_may_use_alone() {
        let all = current_affinity().unwrap();
        for &cpu in &all {
            let pinned = thread::spawn(move || {
                pin_to(cpu).unwrap();
                (current_affinity().unwrap(), allowed_list())
            });
            assert_eq!(pinned.join().unwrap(), (vec![cpu], vec![cpu]));
        }
        assert_eq!(current_affinity().unwrap(), all, "this thread is as it was");
    }

    #[test]
    fn a_processor_that_is_not_there_is_refused_and_changes_nothing() {
        let before = current_affinity().unwrap();
        for cpu in [65_535, 65_536, usize::MAX] {
            assert_eq!(pin_to(cpu).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{cpu}");
        }
        assert_eq!(current_affinity().unwrap(), before);
    }

    #[test]
    fn sets_have_their_bits_in_the_order_of_words() {
        let words = [1 << 3, 1 << 5];
        let set: Vec<usize> = (0..2 * super::WORD_BITS).filter(|cpu| has(&words, *cpu)).collect();
        assert_eq!(set, [3, super::WORD_BITS + 5]);
    }
}
