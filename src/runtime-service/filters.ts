import { ContainerState, type ContainerFilter, type PodSandboxFilter, PodSandboxState } from '../generated/cri.ts'
import type { Container, Sandbox } from '../state/records.ts'

const containerStates: Readonly<Record<Container['status']['state'], number>> = {
  created: ContainerState.CONTAINER_CREATED, running: ContainerState.CONTAINER_RUNNING, exited: ContainerState.CONTAINER_EXITED, unknown: ContainerState.CONTAINER_UNKNOWN,
}

export function containerState(container: Container): number {
  return containerStates[container.status.state]
}

export function sandboxState(sandbox: Sandbox): number {
  return sandbox.state === 'ready' ? PodSandboxState.SANDBOX_READY : PodSandboxState.SANDBOX_NOTREADY
}

export function labelsMatch(labels: Readonly<Record<string, string>>, selector: Readonly<Record<string, string>>): boolean {
  return Object.entries(selector).every(([key, value]) => labels[key] === value)
}

/** The sandboxes that a filter lets through; ids may be shortened. */
export function* filterSandboxes(sandboxes: Iterable<Sandbox>, filter: PodSandboxFilter | null): Generator<Sandbox> {
  for (const sandbox of sandboxes) {
    if (filter !== null) {
      if (filter.id !== '' && !sandbox.id.startsWith(filter.id)) continue
      if (filter.state !== null && filter.state.state !== sandboxState(sandbox)) continue
      if (!labelsMatch(sandbox.metadata.config.labels, filter.label_selector)) continue
    }
    yield sandbox
  }
}

/** The containers that a filter lets through; ids may be shortened. */
export function* filterContainers(containers: Iterable<Container>, filter: Pick<ContainerFilter, 'id' | 'pod_sandbox_id' | 'label_selector'> & { readonly state?: ContainerFilter['state'] } | null): Generator<Container> {
  for (const container of containers) {
    if (filter !== null) {
      if (filter.id !== '' && !container.id.startsWith(filter.id)) continue
      if (filter.pod_sandbox_id !== '' && !container.metadata.sandboxId.startsWith(filter.pod_sandbox_id)) continue
      if (filter.state && filter.state.state !== containerState(container)) continue
      if (!labelsMatch(container.metadata.config.labels, filter.label_selector)) continue
    }
    yield container
  }
}
