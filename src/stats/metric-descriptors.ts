import { MetricType } from '../generated/cri.ts'

/** A metric that cAdvisor exposes for containers, by the name, type and labels that it has at the kubelet's /metrics/cadvisor. */
export interface Descriptor {
  readonly name: string
  readonly help: string
  readonly type: number
  readonly labelKeys: readonly string[]
}

/** What every series is labelled with, in this order: as cAdvisor and the kubelet label them. `id` is the cgroup's path, `name` the id in CRI. */
export const baseLabelKeys = ['container', 'id', 'image', 'name', 'namespace', 'pod'] as const

const all: Descriptor[] = []

function descriptor(type: number, name: string, help: string, labels: readonly string[]): Descriptor {
  const made = { name, help, type, labelKeys: [...baseLabelKeys, ...labels] }
  all.push(made)
  return made
}

const counter = (name: string, help: string, ...labels: readonly string[]): Descriptor => descriptor(MetricType.COUNTER, name, help, labels)
const gauge = (name: string, help: string, ...labels: readonly string[]): Descriptor => descriptor(MetricType.GAUGE, name, help, labels)

/** Every metric, by what it is about. CRI's values are whole numbers: seconds are cut off. */
export const metrics = {
  lastSeen: gauge('container_last_seen', 'When the container was seen last, in seconds since 1970.'),
  startTime: gauge('container_start_time_seconds', 'When the container started, in seconds since 1970.'),

  cpuUsage: counter('container_cpu_usage_seconds_total', 'CPU time used, in seconds.', 'cpu'),
  cpuUser: counter('container_cpu_user_seconds_total', 'CPU time used in user mode, in seconds.'),
  cpuSystem: counter('container_cpu_system_seconds_total', 'CPU time used in the kernel, in seconds.'),
  cfsPeriods: counter('container_cpu_cfs_periods_total', 'Periods of the CPU quota that have passed.'),
  cfsThrottledPeriods: counter('container_cpu_cfs_throttled_periods_total', 'Periods in which the CPU quota was used up.'),
  cfsThrottledSeconds: counter('container_cpu_cfs_throttled_seconds_total', 'How long tasks waited for the next period of the CPU quota, in seconds.'),

  memoryUsage: gauge('container_memory_usage_bytes', 'Memory in use, page cache included, in bytes.'),
  memoryWorkingSet: gauge('container_memory_working_set_bytes', 'Memory in use without inactive page cache, in bytes.'),
  memoryRss: gauge('container_memory_rss', 'Anonymous memory, in bytes.'),
  memoryCache: gauge('container_memory_cache', 'Page cache, in bytes.'),
  memoryMappedFile: gauge('container_memory_mapped_file', 'Mapped files, in bytes.'),
  memorySwap: gauge('container_memory_swap', 'Swap in use, in bytes.'),
  memoryKernel: gauge('container_memory_kernel_usage', 'Memory of the kernel for the container, in bytes.'),
  memoryMaxUsage: gauge('container_memory_max_usage_bytes', 'The most memory that was in use, in bytes.'),
  memoryFailcnt: counter('container_memory_failcnt', 'How often memory use has met the limit.'),
  memoryActiveFile: gauge('container_memory_total_active_file_bytes', 'Active page cache, in bytes.'),
  memoryInactiveFile: gauge('container_memory_total_inactive_file_bytes', 'Inactive page cache, in bytes.'),
  memoryFailures: counter('container_memory_failures_total', 'Page faults, by kind, of the cgroup alone or with those below it.', 'failure_type', 'scope'),
  oomEvents: counter('container_oom_events_total', 'Processes killed for lack of memory.'),
  hugetlbUsage: gauge('container_hugetlb_usage_bytes', 'Huge pages in use, in bytes.', 'pagesize'),
  hugetlbMaxUsage: gauge('container_hugetlb_max_usage_bytes', 'The most huge pages that were in use, in bytes.', 'pagesize'),

  fsUsage: gauge('container_fs_usage_bytes', 'What the writable layer uses, in bytes.', 'device'),
  fsLimit: gauge('container_fs_limit_bytes', 'Size of the file system that the writable layer is on, in bytes.', 'device'),
  fsInodesTotal: gauge('container_fs_inodes_total', 'Inodes of the file system that the writable layer is on.', 'device'),
  fsInodesFree: gauge('container_fs_inodes_free', 'Free inodes of the file system that the writable layer is on.', 'device'),
  fsReads: counter('container_fs_reads_total', 'Reads from a block device.', 'device'),
  fsReadBytes: counter('container_fs_reads_bytes_total', 'Bytes read from a block device.', 'device'),
  fsWrites: counter('container_fs_writes_total', 'Writes to a block device.', 'device'),
  fsWriteBytes: counter('container_fs_writes_bytes_total', 'Bytes written to a block device.', 'device'),
  blkioUsage: counter('container_blkio_device_usage_total', 'Bytes moved to or from a block device, by operation.', 'device', 'major', 'minor', 'operation'),

  networkReceiveBytes: counter('container_network_receive_bytes_total', 'Bytes received.', 'interface'),
  networkReceivePackets: counter('container_network_receive_packets_total', 'Packets received.', 'interface'),
  networkReceiveErrors: counter('container_network_receive_errors_total', 'Errors while receiving.', 'interface'),
  networkReceiveDropped: counter('container_network_receive_packets_dropped_total', 'Packets dropped while receiving.', 'interface'),
  networkTransmitBytes: counter('container_network_transmit_bytes_total', 'Bytes sent.', 'interface'),
  networkTransmitPackets: counter('container_network_transmit_packets_total', 'Packets sent.', 'interface'),
  networkTransmitErrors: counter('container_network_transmit_errors_total', 'Errors while sending.', 'interface'),
  networkTransmitDropped: counter('container_network_transmit_packets_dropped_total', 'Packets dropped while sending.', 'interface'),

  processes: gauge('container_processes', 'Processes in the container.'),
  threads: gauge('container_threads', 'Threads in the container.'),
  threadsMax: gauge('container_threads_max', 'How many threads the container may have; 0 for any number.'),
  fileDescriptors: gauge('container_file_descriptors', 'Open file descriptors.'),
  sockets: gauge('container_sockets', 'Open sockets.'),
  ulimitsSoft: gauge('container_ulimits_soft', 'Soft limits of the first process.', 'ulimit'),

  cpuWaiting: counter('container_pressure_cpu_waiting_seconds_total', 'How long some tasks waited for a CPU, in seconds.'),
  cpuStalled: counter('container_pressure_cpu_stalled_seconds_total', 'How long all tasks waited for a CPU, in seconds.'),
  memoryWaiting: counter('container_pressure_memory_waiting_seconds_total', 'How long some tasks waited for memory, in seconds.'),
  memoryStalled: counter('container_pressure_memory_stalled_seconds_total', 'How long all tasks waited for memory, in seconds.'),
  ioWaiting: counter('container_pressure_io_waiting_seconds_total', 'How long some tasks waited for I/O, in seconds.'),
  ioStalled: counter('container_pressure_io_stalled_seconds_total', 'How long all tasks waited for I/O, in seconds.'),

  specCpuPeriod: gauge('container_spec_cpu_period', 'Period of the CPU quota, in microseconds.'),
  specCpuQuota: gauge('container_spec_cpu_quota', 'CPU quota per period, in microseconds.'),
  specCpuShares: gauge('container_spec_cpu_shares', 'CPU shares.'),
  specMemoryLimit: gauge('container_spec_memory_limit_bytes', 'Memory limit, in bytes; 0 for none.'),
  specMemorySwapLimit: gauge('container_spec_memory_swap_limit_bytes', 'Limit on swap, in bytes; 0 for none. With cgroup v1 on memory and swap together.'),
  specMemoryReservation: gauge('container_spec_memory_reservation_limit_bytes', 'Memory that is kept for the container, in bytes; 0 for none.'),
} as const

/** In the order above. */
export const descriptors: readonly Descriptor[] = all
