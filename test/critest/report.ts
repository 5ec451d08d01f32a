/** One spec as it went. `text` is the full name: containers, contexts and the spec's own words. */
export interface Outcome {
  readonly text: string
  readonly state: 'passed' | 'failed' | 'skipped'
  /** Why it failed or was skipped, as critest says. */
  readonly message: string
  readonly seconds: number
}

/** A spec that is not expected to pass, with the reason. */
export interface Expectation {
  /** A part of the spec's full name. */
  readonly spec: string
  readonly state: 'failed' | 'skipped'
  /** Who it is expected of. Default: both. */
  readonly server?: 'cri-shim' | 'containerd'
  /** Only where nothing but the local registry can be reached. */
  readonly offline?: boolean
  readonly reason: string
}

interface SpecReport {
  readonly LeafNodeType: string
  readonly ContainerHierarchyTexts: readonly string[] | null
  readonly LeafNodeText: string
  readonly State: string
  readonly RunTime: number
  readonly NumAttempts: number
  readonly Failure?: { readonly Message?: string }
}

/** Reads ginkgo's JSON report. Specs that were not selected are left out. */
export function parseReport(json: string): readonly Outcome[] {
  const suites = JSON.parse(json) as readonly { readonly SpecReports: readonly SpecReport[] | null }[]
  return suites.flatMap(({ SpecReports }) => SpecReports ?? [])
    // A spec that a filter left out is "skipped" too, but was never begun; one that skipped itself says why.
    .filter(({ LeafNodeType, State, Failure }) => LeafNodeType === 'It' && State !== 'pending' && !(State === 'skipped' && (Failure?.Message ?? '') === ''))
    .map((spec) => ({
      text: [...spec.ContainerHierarchyTexts ?? [], spec.LeafNodeText].join(' '),
      state: spec.State === 'passed' || spec.State === 'skipped' ? spec.State : 'failed',
      message: spec.Failure?.Message ?? '',
      seconds: spec.RunTime / 1e9,
    }))
}

export interface Verdict {
  /** What went otherwise than expected, in words. */
  readonly surprises: readonly string[]
  /** Specs that did not pass, as expected, each with its reason. */
  readonly known: readonly { readonly outcome: Outcome; readonly reason: string }[]
}

/** Compares outcomes with what is expected of a server. A spec that is expected to fail and passes is a surprise too: the list is stale. */
export function compare(outcomes: readonly Outcome[], expectations: readonly Expectation[], server: 'cri-shim' | 'containerd'): Verdict {
  const surprises: string[] = []
  const known: { outcome: Outcome; reason: string }[] = []
  for (const outcome of outcomes) {
    const expected = expectations.find((one) => outcome.text.includes(one.spec) && (one.server ?? server) === server)
    if (outcome.state === (expected?.state ?? 'passed')) {
      if (expected !== undefined) known.push({ outcome, reason: expected.reason })
    } else if (expected === undefined) {
      surprises.push(`${outcome.state}: ${outcome.text}: ${firstLines(outcome.message)}`)
    } else {
      surprises.push(`${outcome.state}, expected to be ${expected.state} (${expected.reason}): ${outcome.text}: ${firstLines(outcome.message)}`)
    }
  }
  return { surprises, known }
}

const firstLines = (message: string): string => message.trim().split('\n').slice(0, 6).map((line) => line.trim()).join(' ').slice(0, 600)

/** What a run says at its end. */
export function summary(outcomes: readonly Outcome[], { surprises, known }: Verdict, server: string): string {
  const count = (state: Outcome['state']): number => outcomes.filter((outcome) => outcome.state === state).length
  return [
    ...known.map(({ outcome, reason }) => `${outcome.state} as expected: ${outcome.text} (${reason})`),
    ...surprises.map((surprise) => `NOT AS EXPECTED: ${surprise}`),
    `${server}: ${outcomes.length} specs run: ${count('passed')} passed, ${count('failed')} failed, ${count('skipped')} skipped; ${surprises.length} not as expected`,
  ].join('\n')
}
