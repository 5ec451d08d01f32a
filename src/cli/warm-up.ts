/**
 * Fills the compile cache (NODE_COMPILE_CACHE) with everything that `cri-shim serve` loads, worker threads included. Run by bin/cri-shim
 * before the first start.
 */
import { flushCompileCache } from 'node:module'
import { IoWorker } from '../container/io/client.ts'
import { containerdProtos, criProtos } from '../generated/protos.ts'
import { Linux } from '../linux/linux.ts'
import { createLogger } from '../observability/logger.ts'
import './command-line.ts'
import './compose.ts'
import './serve-process.ts'

criProtos()
containerdProtos()
const log = createLogger('fatal')
const [linux, io] = await Promise.all([Linux.start({ log, workers: 1 }), IoWorker.start({ log })])
await io.close()
await linux.close()
flushCompileCache()
