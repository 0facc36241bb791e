# ruff: noqa: E501  (programs are quoted whole)
"""Programs that try to be scored right without being right, to outlive their limits, or to do harm.

SCRIPTS are run as scripts that are asked to print 42 (the hidden line) from no input; FUNCTIONS are asked for f(3) == 9
and f(4) == 16. `{secret}` is a file that holds the answer, `{victim}` a folder that must survive, `{pid}` the process
that asks, `{fd}` a descriptor that is open there.
"""

SCRIPTS = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "fork bomb by signals": "import os\nfor _ in range(10**6):\n    try:\n        if os.fork() == 0:\n            while True: os.fork()\n"
    "    except OSError: pass\nprint(41)",
    "thread bomb": "import threading, time\nfor _ in range(10**5):\n    threading.Thread(target=time.sleep, args=(3600,)).start()",
    "memory bomb": "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "memory bomb by doubling": "x = 'a'\nwhile True: x += x",
    "memory outside of the limit": "import ctypes, os\nlibc = ctypes.CDLL(None)\n"
    "fd = libc.memfd_create(b'x', 0) if hasattr(libc, 'memfd_create') else -1\nassert fd >= 0\n"
    "while True: os.write(fd, bytes(1 << 24))",
    "shared memory": "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.shmget(0, 1 << 32, 0o1666) >= 0\nprint(42)",
    "endless loop": "while True: pass",
    "endless loop in C": "sum(iter(int, 1))",
    "sleep": "import time\ntime.sleep(3600)",
    "sleep with signals held": "import signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\ntime.sleep(3600)",
    "deep recursion": "f = lambda n: f(n + 1)\nf(0)",
    "deep recursion without a limit": "import sys\nsys.setrecursionlimit(10**9)\n"
    "class A:\n    def __repr__(self): return repr(self)\nrepr(A())",
    "deep nesting": "eval('(' * 10**5 + ')' * 10**5)",
    "deletion of a folder": "import os\nfor top, folders, files in os.walk({victim!r}, topdown=False):\n"
    "    for name in files:\n        try: os.unlink(os.path.join(top, name))\n        except OSError: pass\n"
    "    try: os.rmdir(top)\n    except OSError: pass\n",
    "deletion by a shell": "import os, subprocess\nos.system('rm -rf ' + {victim!r})\nsubprocess.run(['rm', '-rf', {victim!r}])",
    "overwriting": "open({secret!r}, 'w').write('gone')",
    "reading the answer from disk": "print(open({secret!r}).read())",
    "reading the answer through a link": "import os\nos.symlink({secret!r}, 'link')\nprint(open('link').read())",
    "a hard link": "import os\nos.link({secret!r}, 'link')\nprint(open('link').read())",
    "reading below the root": "import os\nos.chdir('/')\nfor _ in range(9):\n    try: os.chroot('.')\n    except OSError: pass\n"
    "print(open('../../../../..' + {secret!r}).read())",
    "reading the parent's memory": "import os\npid = os.getppid() or 1\nfor place in (pid, {pid}):\n"
    "    lines = open(f'/proc/{{place}}/maps').read()\n    open(f'/proc/{{place}}/mem', 'rb').read(1)\nprint(42)",
    "reading /proc for arguments": "import glob\nfor name in glob.glob('/proc/[0-9]*/cmdline'): print(open(name).read())",
    "reading the parent's descriptors": "import os\nprint(os.listdir('/proc/{pid}/fd'))\nprint(open('/proc/{pid}/fd/{fd}').read())",
    "reading its own descriptors": "import os\nfor fd in range(3, 1024):\n    try: print(os.pread(fd, 1000, 0))\n    except OSError: pass",
    "reading memory that it was forked with": "import gc\nfor thing in gc.get_objects():\n"
    "    if isinstance(thing, dict) and 'expected' in thing: print(thing['expected'])",
    "tracing the parent": "import ctypes\nassert ctypes.CDLL(None).ptrace(16, {pid}, 0, 0) == 0\nprint(42)",
    "a traceback": "import sys, traceback\nframe = sys._getframe()\nwhile frame:\n    for value in frame.f_locals.values():\n"
    "        if value in ('42', b'42'): print(value)\n    frame = frame.f_back",
    "a socket": "import socket\ns = socket.create_connection(('127.0.0.1', {port}), 2)\nprint(s.recv(100).decode())",
    "a socket that sends": "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    "s.sendto(b'secret', ('127.0.0.1', {port}))\nprint(42)",
    "an unnamed socket": "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect({unix!r})\nprint(s.recv(100).decode())",
    "the right line, then death": "import os\nprint(42, flush=True)\nos.abort()",
    "the right line, then a failure": "print(42)\nraise SystemExit(3)",
    "the right line, then no end": "import time\nprint(42, flush=True)\ntime.sleep(3600)",
    "the right line among others": "for n in range(100): print(n)",
    "os._exit(0)": "import os\nos._exit(0)",
    "closing its output": "import os, sys\nsys.stdout.close()\nos.close(1)",
    "gigabytes of output": "import os\nwhile True: os.write(1, b'42\\n' * 20000)",
    "gigabytes of errors": "import os\nwhile True: os.write(2, b'x' * 60000)",
    "gigabytes of files": "n = 0\nwhile True:\n    n += 1\n    open(str(n), 'wb').write(bytes(1 << 22))",
    "a zip bomb": "import zlib\nx = zlib.compress(bytes(1 << 28), 9)\nprint(len(zlib.decompress(x) * 40))",
    "a pickle": "import pickle\nclass A:\n    def __reduce__(self): return (eval, ('print(42)',))\n"
    "import sys\nsys.stdout.buffer.write(pickle.dumps(A()))",
    "a signal to its parent": "import os, signal\nfor pid in (os.getppid(), {pid}):\n    os.kill(pid, signal.SIGKILL)\nprint(42)",
    "a signal to everyone": "import os, signal\nos.kill(-1, signal.SIGKILL)\nprint(41)",
    "a signal to its group": "import os, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nos.killpg(0, signal.SIGTERM)\nos.kill(0, 9)\nprint(41)",
    "signals by the back door": "import fcntl, os, signal\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, {pid})\n"
    "fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\nos.write(w, b'x')\nprint(42)",
    "limits of its parent": "import os, resource\nfor pid in (os.getppid() or {pid}, {pid}):\n"
    "    resource.prlimit(pid, resource.RLIMIT_CPU, (0, 0))\nprint(42)",
    "the priority of its user": "import os\nos.setpriority(os.PRIO_USER, 0, 19)\nprint(42)",
    "the cores of its parent": "import os\nos.sched_setaffinity({pid}, {{0}})\nprint(42)",
    "shared memory of others": "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.shmat.restype = ctypes.c_long\n"
    "assert any(libc.shmat(n, 0, 0) != -1 for n in range(100))\nprint(42)",
    "a thread that survives": "import threading, time\nthreading.Thread(target=time.sleep, args=(3600,), daemon=False).start()\nprint(42)",
    "a child that survives": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(3600)\nprint(42)",
    "a child that survives, by spawn": "import subprocess\nsubprocess.Popen(['sleep', '3600'], start_new_session=True)\nprint(42)",
    "an exit handler that never ends": "import atexit, time\natexit.register(time.sleep, 3600)\nprint(42)",
    "writing to the results channel": "import os\nfor fd in range(3, 1024):\n"
    '    try: os.write(fd, b\'{{"total": 1.0, "passed": true}}\\n\')\n    except OSError: pass',
    "changing the judge": "import sys\nfor module in list(sys.modules.values()):\n"
    "    for name in ('same', 'same_output', '_same_line', 'verdict'):\n"
    "        if hasattr(module, name): setattr(module, name, lambda *a, **k: True)",
    "changing what ends it": "import os, sys, threading\nos._exit = sys.exit = lambda *a: None\nthreading._shutdown = lambda: None\nprint(41)",
    "another interpreter": "import os, sys\nos.execv('/usr/bin/env', ['env', 'python3', '-c', 'print(42)'])",
    "a new namespace": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0\nprint(42)",
    "io_uring": "import ctypes\nassert ctypes.CDLL(None).syscall(425, 8, bytes(120)) >= 0\nprint(42)",
    "another architecture's calls": "import ctypes\nassert ctypes.CDLL(None).syscall(0x40000000 + 39) > 0\nprint(42)",
    "reading its own memory": "import re\nmaps = open('/proc/self/maps').read()\nwith open('/proc/self/mem', 'rb', 0) as memory:\n"
    "    for start, end in re.findall(r'(\\w+)-(\\w+) r', maps):\n        try:\n            memory.seek(int(start, 16))\n"
    "            data = memory.read(int(end, 16) - int(start, 16))\n        except (OSError, OverflowError, ValueError, MemoryError): continue\n"
    "        for found in re.findall(rb'expected\\W+(\\w+)', data): print(found.decode())",
    "tracing its neighbours": "import ctypes, os\nlibc = ctypes.CDLL(None)\n"
    "assert any(libc.ptrace(16, pid, 0, 0) == 0 for pid in range(1, 3000) if pid != os.getpid())\nprint(42)",
    "reading others' memory by a call": "import ctypes, os\nlibc, room = ctypes.CDLL(None), ctypes.create_string_buffer(8)\n"
    "ours = (ctypes.c_void_p * 2)(ctypes.addressof(room), 8)\ntheirs = (ctypes.c_void_p * 2)(0x400000, 8)\n"
    "assert any(libc.syscall(310, pid, ours, 1, theirs, 1, 0) > 0 for pid in (os.getppid(), {pid}))\nprint(42)",
    "taking a descriptor of its parent": "import ctypes, os\nlibc = ctypes.CDLL(None)\nfor pid in (os.getppid() or 1, {pid}):\n"
    "    handle = libc.syscall(434, pid, 0)\n    assert handle >= 0\n"
    "    assert any(libc.syscall(438, handle, fd, 0) >= 0 for fd in range(64))\nprint(42)",
    "calls that programs do not need": "import ctypes\nlibc, room = ctypes.CDLL(None), bytes(256)\n"
    "assert any(libc.syscall(number, 0, room, 128, 0, 0) >= 0 for number in (165, 250, 272, 298, 304, 308, 321, 323, 428, 442))\nprint(42)",
    "a tracer of everything": "import sys, threading\nsys.setrecursionlimit(10**6)\ndef look(frame, event, value):\n"
    "    while frame:\n        for found in frame.f_locals.values():\n            if found in ('42', b'42'): print(found)\n"
    "        frame = frame.f_back\n    return look\nsys.settrace(look)\nsys.setprofile(look)\nthreading.settrace(look)\n"
    "frame = sys._getframe()\nwhile frame:\n    frame.f_trace = look\n    frame = frame.f_back\nimport this",
    "the right line at exit, after a failure": "import atexit\natexit.register(print, 42)\nraise ValueError",
    "the right line, then a fault": "import ctypes\nprint(42, flush=True)\nctypes.string_at(0)",
    "a child that prints on": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(0.1)\n    print(42, flush=True)\n    time.sleep(3600)\nos._exit(0)",
    "a grandchild that holds the pipe": "import os, signal, time\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\nif os.fork() == 0:\n    os.setsid()\n"
    "    if os.fork() == 0:\n        os.chdir('/')\n        time.sleep(3600)\n    os._exit(0)\nos.wait()\nprint(42)",
    "forks by other calls": "import ctypes\nlibc = ctypes.CDLL(None)\nfor call in ((57,), (58,), (56, 17, 0, 0, 0, 0), (435, bytes(64), 64)):\n"
    "    pid = libc.syscall(*call)\n    if pid == 0:\n        while True: pass\n    assert pid > 0\nprint(42)",
    "limits raised": "import resource\nfor name in ('CPU', 'AS', 'FSIZE', 'NPROC', 'CORE'):\n"
    "    resource.setrlimit(getattr(resource, 'RLIMIT_' + name), (-1, -1))\nprint(42)",
    "deaf to the end of its time": "import signal, time\nfor n in (signal.SIGXCPU, signal.SIGALRM, signal.SIGVTALRM, signal.SIGTERM, signal.SIGPIPE):\n"
    "    signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
    "the best priority": "import os\nos.nice(-20)\nprint(42)",
    "a line of 100 MB": "import sys\nfor _ in range(100): sys.stdout.write('4' * 10**6)",
    "a number of a million digits": "import sys\nsys.set_int_max_str_digits(0)\nprint(42 * 10 ** 10**6)",
    "a null behind the line": "print('42\\0')",
    "digits of another script": "print('\\uff14\\uff12')",
    "signs that nobody sees": "print('4\\u200d2', '\\ufeff42', '42\\u200b', '41\\b2', '41\\r42', sep='\\n')",
    "an escape that clears the line": "print('41\\x1b[2K\\r42')",
    "no UTF-8": "import os\nos.write(1, b'42\\xff')",
    "living without its parent": "import ctypes\nassert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0\nprint(42)",
}

FUNCTIONS = {
    "__eq__": "class A:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
    "def f(n): return A()",
    "__eq__ of an int": "class A(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef f(n): return A(1)",
    "__eq__ within a list": "class A(list):\n    def __eq__(self, other): return True\ndef f(n): return A([1])",
    "a value that pretends": "class A:\n    __class__ = int\n    def __index__(self): return 9\n    def __int__(self): return 9\n"
    "def f(n): return A()",
    "os._exit(0) in the call": "import os\ndef f(n): os._exit(0)",
    "os._exit(0) at once": "import os\nos._exit(0)",
    "sys.exit": "import sys\ndef f(n): sys.exit(0)",
    "no function": "x = 9",
    "printing": "def f(n): print(n * n)",
    "an early verdict": 'import os\nfor fd in range(1, 64):\n    try: os.write(fd, b\'{"passed": true, "why": ""}\\n\')\n    except OSError: pass\n'
    "def f(n): return None",
    "early replies": "import os\ntry: os.write(5, b'{\"value\": 9}\\n' * 5)\nexcept OSError: pass\ndef f(n): return None",
    "replies that are none": "import os\ntry: os.write(5, b'nonsense\\n[1, 2]\\n{\"value\"')\nexcept OSError: pass\ndef f(n): return 9",
    "a reply without end": "import os\ndef f(n):\n    while True: os.write(5, b'9' * 60000)",
    "a deep reply": "import os\ndef f(n):\n    os.write(5, b'{\"value\": ' + b'[' * 50000 + b']' * 50000 + b'}\\n')\n    return 9",
    "a huge number": "def f(n): return 10 ** 10 ** 6",
    "a huge range": "def f(n): return range(10 ** 15)",
    "a value that contains itself": "def f(n):\n    x = []\n    x.append(x)\n    return x",
    "a pickled reply": "import os, pickle\ndef f(n):\n    os.write(5, pickle.dumps(9))\n    return 10",
    "AssertionError replaced": "import builtins\nbuiltins.AssertionError = type('A', (Exception,), {})\ndef f(n):\n    raise AssertionError",
    "changing the judge": "import builtins, json, sys\n__debug = True\n"
    "for module in list(sys.modules.values()):\n"
    "    for name in ('same', 'decode', 'encode', '_judge', 'run_tests'):\n"
    "        if hasattr(module, name): setattr(module, name, lambda *a, **k: True)\n"
    "json.dumps = lambda *a, **k: '{\"passed\": true}'\ndef f(n): return 1",
    "a generator": "def f(n): yield 9",
    "a constant": "def f(n): return 9",
    "an endless call": "def f(n):\n    while True: pass",
    "an endless import": "import time\ntime.sleep(3600)\ndef f(n): return n * n",
    "recursion": "def f(n): return f(n)",
    "memory": "def f(n): return bytearray(1 << 40)",
    "the frames above": "import sys\ndef f(n):\n    frame = sys._getframe()\n    while frame:\n"
    "        for value in list(frame.f_locals.values()):\n            if value in (9, 16): return value\n        frame = frame.f_back\n",
    "an int that writes itself otherwise": "class A(int):\n    def __repr__(self): return str(self.real * self.real)\n    __str__ = __format__ = __repr__\n"
    "def f(n): return A(n)",
    "a float that is everything": "class A(float):\n    def __eq__(self, other): return True\n    def __sub__(self, other): return 0.0\n"
    "    __rsub__ = __sub__\n    def __abs__(self): return 0.0\ndef f(n): return A('nan')",
    "not a number": "def f(n): return float('nan')",
    "hooks of the import": "import builtins, sys\nclass Finder:\n    def find_spec(self, name, path=None, target=None):\n        raise SystemExit(0)\n"
    "sys.meta_path.insert(0, Finder())\nsys.path_hooks.insert(0, lambda path: sys.exit(0))\nbuiltins.__import__ = lambda *a, **k: sys.modules['sys']\n"
    "sys.modules['json'] = sys.modules['_json'] = None\ndef f(n): return 1",
    "all descriptors closed": "import os\ndef f(n):\n    os.closerange(0, 4096)\n    return n * n",
    "a reply of 100 MB": "def f(n): return '9' * 10**8",
    "an exit within an exit": "import atexit, os\natexit.register(os._exit, 0)\nraise KeyboardInterrupt",
    "an exception that talks": "class AssertionError(Exception):\n    def __str__(self): return str(self.args) * 10**7\ndef f(n): raise AssertionError(9)",
    "a thread that answers": "import os, threading, time\ndef tell():\n    while True:\n        try: os.write(5, b'{\"value\": 9}\\n')\n        except OSError: return\n"
    "        time.sleep(0.001)\nthreading.Thread(target=tell, daemon=True).start()\ndef f(n): time.sleep(3600)",
    "the tests' process": "import os, signal\ndef f(n):\n    for pid in range(1, 400):\n        try: os.kill(pid, 9)\n        except OSError: pass\n    return 9",
}
