import { flushCompileCache } from 'node:module'
import { IoWorker } from '../container/io/client.ts'
import { containerdProtos, criProtos } from '../generated/protos.ts'
import { Linux } from '../linux/linux.ts'
import { createLogger } from '../observability/logger.ts'
import './compose.ts'
import './serve-process.ts'

/** Loads everything that `cri-shim serve` loads, worker threads included, and writes the compile cache (NODE_COMPILE_CACHE). */
export async function warmUp(): Promise<void> {
  criProtos()
  containerdProtos()
  const log = createLogger('fatal')
  const [linux, io] = await Promise.all([Linux.start({ log, workers: 1 }), IoWorker.start({ log })])
  await io.close()
  await linux.close()
  flushCompileCache()
}
